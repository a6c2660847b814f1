# Login shells see what /etc/environment says even where no PAM session reads it.
if [ -r /etc/environment ]; then
    set -a
    . /etc/environment
    set +a
fi
