"""Typed talk over any MQTT broker: `topics` (where), `messages` (what), `twin` (the device's two halves),
`chunks` (blobs in ranges), `link` (all of it over one `transports` plug-in)."""
