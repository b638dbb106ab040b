"""Fields on a latitude-longitude grid with levels: `[batch, var, level, lat, lon]`."""
