"""N-BEATS for astrozoo: the smallest complete plugin. The models are in `nbeats`, the hooks in `hooks`."""
