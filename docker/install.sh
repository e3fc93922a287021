#!/bin/sh
# Runs inside the image build: `dependencies` fills /opt/venv (a layer that images with the same requirements share), `code`
# fills /opt/code, which that environment looks into.
# With wheels in /build/wheelhouse nothing is fetched (air-gapped build); a bundle in /build/ca is trusted by pip.
set -eu
cd /build
case "$1" in
dependencies)
    python3 -m venv /opt/venv
    for bundle in ca/*.crt; do
        if [ -f "$bundle" ]; then export PIP_CERT="/build/$bundle"; fi
    done
    set -- --no-cache-dir --disable-pip-version-check -c constraints.txt -r requirements.txt
    if ls wheelhouse/*.whl >/dev/null 2>&1; then
        set -- --no-index --find-links wheelhouse "$@"
    fi
    /opt/venv/bin/pip install --no-compile "$@"
    # pip compiles on one core, which takes longer than all the rest of an installation; like pip, go on where files are
    # no Python of this version (templates, tests of other versions)
    /opt/venv/bin/python3 -m compileall -qq -j 0 /opt/venv/lib || echo "not compiled: some files of /opt/venv/lib"
    echo /opt/code >"$(/opt/venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/autopet-code.pth"
    ;;
code)
    /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation --disable-pip-version-check \
        --target /opt/code .
    ;;
*)
    echo "usage: install.sh dependencies|code" >&2
    exit 2
    ;;
esac
