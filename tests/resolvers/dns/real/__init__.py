"""DnsResolver over real sockets: against knot, against a server of our own that does everything wrong, and its end."""
