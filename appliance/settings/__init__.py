"""Everything that can be configured, with default and description; sections are the tree's folders."""

from __future__ import annotations

from appliance.settings.access import AccessSettings, DirectorySettings, RadiusSettings
from appliance.settings.enrolment import AuditRule, EstProfile, EstSettings, RegistrarSettings
from appliance.settings.hosts import JoinSettings, OwnerSettings, ProxySettings
from appliance.settings.identity import Approvers, IdentitySettings
from appliance.settings.loading import (
    FILE_NAME,
    LoadedSettings,
    default_home,
    describe_settings,
    load_settings,
    sample_file,
)
from appliance.settings.model import Settings
from appliance.settings.pki import CaSettings, DomainSettings, HsmSettings
from appliance.settings.section import SettingsInvalid
from appliance.settings.serving import AuditSettings, LogSettings, StoreSettings, WebSettings

__all__ = [
    "FILE_NAME",
    "AccessSettings",
    "Approvers",
    "AuditRule",
    "AuditSettings",
    "CaSettings",
    "DirectorySettings",
    "DomainSettings",
    "EstProfile",
    "EstSettings",
    "HsmSettings",
    "IdentitySettings",
    "JoinSettings",
    "LoadedSettings",
    "LogSettings",
    "OwnerSettings",
    "ProxySettings",
    "RadiusSettings",
    "RegistrarSettings",
    "Settings",
    "SettingsInvalid",
    "StoreSettings",
    "WebSettings",
    "default_home",
    "describe_settings",
    "load_settings",
    "sample_file",
]
