"""The registrar: BRSKI and EST for identity proxies on their way in, and what administrators do about them.

A voucher-request's path: routes -> service.request_voucher -> brski.Registrar.consider -> admission -> masa_client.send
-> MasaExchange.conclude -> store, audit -> Reply. Beside it: reports (telemetry), history (the audit log judged),
est_service with applicants (who may have an LDevID), manufacturers and inventory (administrators' verbs), announce
(mDNS). `assemble` puts the parts together.
"""
