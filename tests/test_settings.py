"""Settings: from the environment, frozen, and strict."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from allrounder_service.settings import Settings


@pytest.fixture(autouse=True)
def no_port_of_the_shell(monkeypatch):
    monkeypatch.delenv("PORT", raising=False)


def test_the_defaults_serve_the_demo_model_on_this_machine(monkeypatch):
    monkeypatch.delenv("ALLROUNDER_EMBEDDED_REDIS")
    settings = Settings()
    assert (settings.model, settings.host, settings.port) == ("demo", "127.0.0.1", 8000)
    assert settings.default_budget == 1
    assert settings.api_keys == ()
    assert settings.redis_url is None
    assert settings.embedded_redis


def test_the_environment_sets_them(monkeypatch):
    monkeypatch.setenv("ALLROUNDER_DEFAULT_BUDGET", "0.5")
    monkeypatch.setenv("ALLROUNDER_API_KEYS", " a, ,b ")
    monkeypatch.setenv("REDIS_URL", "redis://u:secret@h/0")
    monkeypatch.setenv("PORT", "9000")
    settings = Settings()
    assert settings.default_budget == 0.5
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://u:secret@h/0"
    assert settings.port == 9000
    assert "secret" not in repr(settings)


def test_our_own_names_win_over_the_aliases_and_arguments_over_both(monkeypatch):
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("ALLROUNDER_PORT", "9001")
    assert Settings().port == 9001
    assert Settings(port=9002).port == 9002


def test_an_empty_variable_is_no_setting(monkeypatch):
    monkeypatch.setenv("ALLROUNDER_PORT", "")
    assert Settings().port == 8000


def test_the_service_link_of_kubernetes_is_not_a_port(monkeypatch):
    monkeypatch.setenv("ALLROUNDER_PORT", "tcp://10.0.0.1:8000")
    assert Settings().port == 8000


@pytest.mark.parametrize(
    "fields",
    [
        {"default_budget": 0},
        {"default_budget": "nan"},
        {"quality_margin": -1},
        {"split_by": "luck"},
        {"max_queue": 0},
        {"port": 70_000},
        {"dtype": "int3"},
        {"log_level": "loud"},
        {"embedded_redis_bytes": 1024},
        {"requests_per_minute": -1},
        {"max_connections": 0},
        {"max_header_bytes": 1},
        {"slow_client_seconds": 0},
        {"redis_url": "http://h"},
        {"redis_url": "redis://"},
        {"redis_url": "unix://"},
        {"redis_url": "redis://h:99999"},
        {"otlp_endpoint": "localhost:4318"},
        {"otlp_endpoint": "grpc://localhost:4317"},
        {"otlp_endpoint": "http://"},
        {"otlp_endpoint": "http://user:key@h:4318"},
        {"otlp_endpoint": "https://h:4318?key=secret"},
        {"trace_sample_ratio": 1.5},
    ],
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ValidationError):
        Settings(**fields)


def test_a_wrong_address_of_redis_does_not_show_its_password():
    with pytest.raises(ValidationError) as caught:
        Settings(redis_url="redis://user:half/secret@h")
    assert "half" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_flag_beats_every_spelling_of_its_variable(monkeypatch):
    monkeypatch.setenv("PORT", "9100")
    assert Settings(_cli_parse_args=["--port", "9200"], _cli_kebab_case=True).port == 9200
    monkeypatch.setenv("ALLROUNDER_PORT", "9300")
    assert Settings().port == 9300
    assert Settings(_cli_parse_args=["--port", "9200"], _cli_kebab_case=True).port == 9200


def test_settings_are_frozen_and_every_field_explains_itself():
    with pytest.raises(ValidationError):
        setattr(Settings(), "model", "other")  # noqa: B010
    assert all(field.description for field in Settings.model_fields.values())
