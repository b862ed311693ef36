#!/usr/bin/env bash
# Runs everything: the whole suite with many more examples, then README.md as printed: scripts/nightly.sh [FLAGS]
#
# The commands and code blocks run in their order, in a temporary folder. FLAGS, as --data_dir=FOLDER, go to each command
# that trains. Without them, and without MNIST in the cache of Keras, all train on digits. Takes hours.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # after sh scripts/nightly.sh
set -euo pipefail
unset CDPATH # with it, cd prints a path
trap 'exit 130' INT
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
"$root/scripts/test.sh" -m "nightly or not nightly" --hypothesis-profile=large
source "$root/.venv/bin/activate"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python "$root/scripts/proofs/failing_calls.py" --every=9 --workdir="$folder/failing_calls"
cd "$folder"
mkdir scripts
ln -s "$root"/scripts/{proofs,recipes} scripts/
printf '#!/usr/bin/env bash\nexec %q "$@"\n' "$root/scripts/train.sh" > scripts/train.sh
chmod +x scripts/train.sh

# Writes the code blocks to files, an image to digit.png, and all commands to commands.sh.
python - "$root/README.md" "$@" <<'EOF_PYTHON'
import pathlib, re, shlex, sys

from mnist import data
from PIL import Image

readme, flags = pathlib.Path(sys.argv[1]).read_text(), " ".join(map(shlex.quote, sys.argv[2:]))
Image.fromarray(data.load("digits").test.images[0, :, :, 0]).save("digit.png")
lines = ["set -ex"]
for code, block, row in re.findall(r"```python\n(.*?)```|```bash\n(.*?)```|\| `(python .*?)`", readme, re.DOTALL):
    if code:
        name = code.split()[1]
        pathlib.Path(name).write_text(code)
        lines.append(f"python {name} {flags if 'launch(' in code else ''}")
    for command in (block + row).splitlines():
        command = command.partition("  #")[0].strip()
        if command in ("scripts/test.sh", "scripts/nightly.sh") or re.search("failing_calls|random_models|portable", command):
            continue
        if re.search("speedrun|1_epoch", command) and not flags and data.load().name == "digits":
            continue  # the warm-up is longer than an epoch of digits
        if "mnist.sweep" in command or "torture" in command:
            command += f" -- {flags}" if flags else ""
        elif re.search(r"train|mnist\.research|compare_with_fit|flip_bits", command):
            command += f" {flags}"
        lines.append(command)
pathlib.Path("commands.sh").write_text("\n".join(lines) + "\n")
EOF_PYTHON
bash commands.sh
timeout 4h python scripts/proofs/random_models.py --count=1000
timeout 3h python scripts/proofs/portable.py --cpus="$(command -v qemu-x86_64 > /dev/null && echo Haswell,EPYC)"
echo "nightly: all passed"
