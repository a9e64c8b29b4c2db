"""Every setting of the service, in one frozen class."""

from allrounder.settings import ENV_PREFIX as ENV_PREFIX
from allrounder_service.settings.service_settings import Settings as Settings
