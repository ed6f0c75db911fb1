"""The SPIFFE Workload API (SPIFFE Workload Endpoint and Workload API standards), beside the Agent API; extra `spiffe`.

Existing SPIFFE software expects that its key is made for it. So here, and only here, the proxy makes an agent's key: in
memory, for one configured user and program, and every piece of evidence says so.
"""
