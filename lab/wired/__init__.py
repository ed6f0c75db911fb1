"""The wired lab: a switch whose ports are guarded by real hostapd, one network per VLAN, and the story told on it."""
