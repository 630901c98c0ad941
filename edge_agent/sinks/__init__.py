"""Where events go without a hub: a file, the terminal, a broker, somebody's web server; and what brings them there."""
