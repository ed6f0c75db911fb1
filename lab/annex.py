"""A second campus on the stage of the first: its own appliance and trust domain, one owner, proxies by plain EST."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from lab import credentials
from lab.stage import Stage
from lab.story import Process

POLICY = """\
version = 1

[vlans]
visitors = 70
guest = 99

[defaults]
unmapped = "guest"
stale = "reject"
guest_vlan = "guest"

[[rule]]
name = "visitors"
department = "Partners"
vlan = "visitors"
"""


class Annex(Stage):
    """Another organisation's campus, in which an owner of the first one is known too."""

    def __init__(self, first: Stage, trust_domain: str) -> None:
        """Its processes end with those of `first`; it has its own home, owners, proxies and logins."""
        name = trust_domain.partition(".")[0]
        super().__init__(first.out / name, first.engine, first.supplicant, first.story)
        self.name = name
        self.trust_domain = trust_domain
        self.cast = first.cast
        self.radius_name = f"radius.{trust_domain}"

    def open(self, owner: str) -> None:
        """Set up and start, with one owner."""
        self.out.mkdir(exist_ok=True)
        self.admin("init", "--trust-domain", self.trust_domain, "--org", "Example Partner")
        server = self.cast.start(
            f"appliance-{self.name}",
            [
                *self.program(), "run", "--home", self.home, "-o", "json", "--set", f"radius.engine={self.engine}",
                "--set", "registrar.announce=false", "--set", "radius.port=0",
                *(f"--set=web.{port}_port=0" for port in ("device", "console", "decision", "pki")),
            ],
        )  # fmt: skip
        self.listeners = server.wait_for("ready", 30)["listeners"]
        self.admin("nas", "add", "lab-switch", "127.0.0.1", "--secret-file", self.secret_file())
        (self.out / "policy.toml").write_text(POLICY)
        self.admin("policy", "publish", self.out / "policy.toml", "--comment", "demo")
        self.admin("owners", "add", owner, "--kind", "policy", "--department", "Partners")
        self.owner_ids = {row["ref"]: row["identifier"] for row in self.admin("owners", "list")}


def est_proxy(stage: Stage, name: str) -> tuple[Process, Path]:
    """A proxy that comes in with a one-time secret; answers the process and its Agent API."""
    state, root = stage.out / name, stage.out / "est-root.pem"
    root.write_bytes(credentials.load(stage.ca("root"))[0].public_bytes(Encoding.PEM))
    made: Any = stage.admin("est", "secret", "new", "--for", name)
    secret = stage.out / f"{name}.secret"
    handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(f"{made['name']}:{made['secret']}\n")
    process = stage.cast.start(
        f"{stage.home.parent.name}-{name}",
        [
            *stage.program(), "proxy", "run", "--state", state, "-o", "json",
            "--set", "proxy.method=est", "--set", f"proxy.registrar_url=https://{stage.listeners['device']}",
            "--set", f"proxy.est_anchor={root}", "--set", f"proxy.est_secret_file={secret}",
            "--set", "proxy.socket_mode=438",
            "--set", f"proxy.allow_root_agents={'true' if os.geteuid() == 0 else 'false'}",
        ],
    )  # fmt: skip
    ready = process.wait_for("ready", 60)
    return process, Path(ready["socket"])
