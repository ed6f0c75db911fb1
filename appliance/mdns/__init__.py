"""DNS-SD over mDNS on a real LAN: the links of this machine, and what is announced on each (RFC 6762, 6763)."""
