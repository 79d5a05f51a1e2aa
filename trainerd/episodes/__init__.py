"""Episodes on disk: one MCAP file each, synced before anything is acknowledged, and the catalogue that finds them."""
