"""Every setting of the service, in one frozen class."""

from app.settings.jobs import ENV_PREFIX as ENV_PREFIX
from app.settings.service import ROOT as ROOT
from app.settings.service import Settings as Settings
