"""What both programs need of the machine they run on; nothing of it is part of the contract."""
