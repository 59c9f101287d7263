# Makes .venv, for scripts/run and scripts/setup, which source this file from the root of the repository.

fail() {
    echo "$*" >&2
    exit 1
}

version_of() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null
}

# If python3 and the distribution's Python have the same version, the latter is used, if it can make virtualenvs and
# extensions. It is built with profile-guided optimisation, as in the container. Without it, as pyenv usually builds, a
# request needs 10 % more CPU time. PYTHON=... chooses another one.
choose_python() {
    local default=/usr/bin/python3 needs='import ensurepip, os, sysconfig
os.stat(sysconfig.get_path("include") + "/Python.h")'
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ "$(version_of $default | cut -d. -f1-2)" = "$(version_of python3 | cut -d. -f1-2)" ] &&
        $default -c "$needs" 2> /dev/null; then
        echo $default
    else
        echo python3
    fi
}

make_venv() {
    local python found
    python="$(choose_python)"
    found="$(version_of "$python" || true)"
    case "$found" in
        3.[0-9].* | 3.10.* | [12].*) fail "needs Python 3.11 or newer, found $found" ;;
        [3-9].*) ;;
        *) fail "needs Python 3.11 or newer, found none that runs as $python" ;;
    esac
    if venv_is_of "${found%.*}"; then return; fi
    "$python" -c 'import ensurepip' 2> /dev/null || fail "needs venv for $python (Debian: apt-get install python3-venv)"
    if [ -e .venv ] || [ -L .venv ]; then echo "replacing .venv, which is not of Python ${found%.*} or is broken ..." >&2; fi
    rm -rf .venv
    "$python" -m venv .venv
}

# After a system upgrade the version of .venv/bin/python may differ from that of the packages in .venv.
venv_is_of() {
    [ "$(sed -n 's/^version\(_info\)\{0,1\} = \([0-9]*\.[0-9]*\).*/\2/p' .venv/pyvenv.cfg 2> /dev/null)" = "$1" ] &&
        [[ "$(version_of .venv/bin/python)" = "$1".* ]] && .venv/bin/python -c 'import pip' 2> /dev/null
}

# install NAME EXTRAS: the gateway, editable, with these extras. Does nothing if .venv/.installed-NAME is current.
install() {
    local wanted stamp=".venv/.installed-$1" log
    wanted="$({ pwd && cat setup.py pyproject.toml; } | sha256sum)"
    if [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ]; then return; fi
    echo "installing into .venv ..." >&2
    log="$(mktemp)"
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 --editable ".[$2]" 2> "$log" >&2; then
        explain_pip "$log"
    fi
    rm -f "$log"
    echo "$wanted" > "$stamp"
}

explain_pip() {
    local index signs='NewConnectionError|connection broken|timed out|unreachable|max retries|ProxyError|SSLError'
    index="$(.venv/bin/python -m pip config get global.index-url 2> /dev/null || true)"
    index="${PIP_INDEX_URL:-${index:-https://pypi.org/simple}}"
    if grep -qiE "$signs" "$1" && grep -qE "No matching distribution|Could not f" "$1"; then
        rm -f "$1"
        fail "The package index $(sed 's|//[^/]*@|//|' <<< "$index") cannot be reached: check the network, or set PIP_INDEX_URL to a mirror."
    fi
    cat "$1" >&2
    rm -f "$1"
    exit 1
}
