"""The fleet's server: what it signs, whom it knows, what it spreads.

`config` (the home folder) - `keys`, `repository` (TUF) - `broker` (Mosquitto's files) - `claims` (enrolment) -
`store` (the database) - `sources`, `releases` (what was published) - `devices` (who should be what) -
`rollouts` (how a release spreads) - `operations` (every action) - `downlink`, `ingest` (talk with devices) -
`coordinator`, `rebuild` (federated jobs) - `server` (one event loop around all of it) - `cli`.
"""
