"""The server: fleet, registry, rollouts. No torch in its process."""
