"""How long viewers wait: measures of sessions, viewers in real time, and what is reported of them."""
