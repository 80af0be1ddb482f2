from tests.clients.console.conftest import console as console
