"""The same protocols over many processes and machines, on Ray. Only modules of this room import `ray`."""
