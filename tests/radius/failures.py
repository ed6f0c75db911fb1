"""What FreeRADIUS 3.2.1 (Debian 12, OpenSSL 3.0.19) put into Module-Failure-Message, recorded from our configuration.

Supplicant: lab.supplicant with a certificate or a trust that is wrong in the way named; TLS 1.2 and 1.3 said the same.
"""

from __future__ import annotations

END = [
    "eap_tls: (TLS) Server : Error in error",
    "eap_tls: (TLS) Failed reading from OpenSSL: error:0A000086:SSL routines::certificate verify failed",
    "eap_tls: (TLS) System call (I/O) error (-1)",
    "eap_tls: (TLS) EAP Receive handshake failed during operation",
    "eap_tls: [eaptls process] = fail",
    "eap: Failed continuing EAP TLS (13) session.  EAP sub-module failed",
]
PEER = ["eap_tls: (TLS) Cannot continue, as the peer is misbehaving.", *END[4:]]
RECORDED: dict[str, list[str]] = {
    "expired": [
        "eap_tls: (TLS) OpenSSL says error 10 : certificate has expired",
        "eap_tls: (TLS) Alert write:fatal:certificate expired",
        *END,
    ],
    "not yet valid": [
        "eap_tls: (TLS) OpenSSL says error 9 : certificate is not yet valid",
        "eap_tls: (TLS) Alert write:fatal:bad certificate",
        *END,
    ],
    "stranger": [
        "eap_tls: (TLS) OpenSSL says error 20 : unable to get local issuer certificate",
        "eap_tls: (TLS) Alert write:fatal:unknown CA",
        *END,
    ],
    "server's certificate": [
        "eap_tls: (TLS) OpenSSL says error 26 : unsuitable certificate purpose",
        "eap_tls: (TLS) Alert write:fatal:unsupported certificate",
        *END,
    ],
    "supplicant with another root": [
        "eap_tls: (TLS) Alert read:fatal:unknown CA",
        "eap_tls: (TLS) Failed reading from OpenSSL: error:0A000418:SSL routines::tlsv1 alert unknown ca",
        *PEER,
    ],
    "supplicant with another server name": [
        "eap_tls: (TLS) Alert read:fatal:internal error",
        "eap_tls: (TLS) Failed reading from OpenSSL: error:0A000438:SSL routines::tlsv1 alert internal error",
        *PEER,
    ],
    "decision port silent": [END[5], "Cannot proxy packets unless 'proxy_requests = yes'"],
    "PEAP": ["eap: No mutually acceptable types found", "Cannot proxy packets unless 'proxy_requests = yes'"],
    "no EAP": ["Cannot proxy packets unless 'proxy_requests = yes'"],
}
LOG_LINES = {
    "unknown NAS": "Sat Nov 28 16:34:02 2026 : Error: Ignoring request to auth address 127.0.0.1 port 55771 bound to "
    "server default from unknown client 127.0.0.1 port 33542 proto udp",
    "wrong secret": "Sat Nov 28 16:34:03 2026 : Info: Dropping packet without response because of error: Received "
    "packet from 127.0.0.2 with invalid Message-Authenticator!  (Shared secret is incorrect.) (from client switch-1)",
}
