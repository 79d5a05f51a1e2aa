"""The control process: clock, arbitration, safety and actuator. It imports numpy and protocol, nothing slower."""
