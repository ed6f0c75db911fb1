"""Where owners come from besides an administrator's hands: a watched CSV file, an LDAP directory."""
