"""The agent's HTTP interface on its own device: state, live view, events, metrics, inference. See docs/agent-api.md."""
