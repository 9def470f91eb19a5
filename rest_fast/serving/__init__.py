"""Sessions for the world outside: frames and sound for every transport, a server with its page, adapters."""
