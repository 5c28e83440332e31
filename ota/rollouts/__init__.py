"""How a release spreads: `machine` decides (pure), `strategies` choose the next wave, `engine` writes what follows."""
