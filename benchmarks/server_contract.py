"""The server against its own OpenAPI description, by schemathesis with all its checks: valid and invalid requests.

python -m benchmarks.server_contract --examples 300

Runs `schemathesis run` on `indistill serve` twice, without and with a token. A search with a valid form may be refused
by 400 or 422, as a schema cannot say which texts are conditions and which bytes are images.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import describe_machine, report_machine
from benchmarks.served import TOKEN, make_index, run_server

CONFIG = """[checks.positive_data_acceptance]
expected-statuses = ["2xx", 304, 400, 404, 422]
[checks.negative_data_rejection]
expected-statuses = [400, 403, 404, 405, 406, 413, 415, 422]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=300, help="of each operation and phase at most (300)")
    arguments, machine, codes = parser.parse_args(), describe_machine(), []
    with tempfile.TemporaryDirectory(prefix="server-contract-") as temporary:
        folder = Path(temporary)
        index, token, config = make_index(folder, 40), folder / "token", folder / "schemathesis.toml"
        token.write_text(TOKEN)
        config.write_text(CONFIG)
        for options, shown in (((), ()), (("--token-file", str(token)), ("-H", f"Authorization: Bearer {TOKEN}"))):
            with run_server(index, *options) as served:
                command = ["schemathesis", "--config-file", str(config), "run", f"{served.url}/openapi.json"]
                modes = ["--checks", "all", "--mode", "all", "--max-examples", str(arguments.examples)]
                done = subprocess.run([*command, *modes, *shown], check=False, cwd=folder)
                codes += [done.returncode, int("Traceback" in served.log.read_text())]
    report_machine(machine)
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
