"""OpenNebula: the adapter and its stand-in front-end."""
