"""The policy process: loads one bundle or controller, proves it, and answers the ticks that ask for a decision."""
