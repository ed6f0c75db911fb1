"""The rest of the world: manufacturers, MASA, devices, demonstrations; imports everything, imported by nobody."""
