# What the set-up left of a checkout, told before the VM is frozen. Where the tree is not as the commit says, an index of what it
# holds is put beside git's own: names and hashes, and no content. It proves later that nobody has changed a file since.
# For `sh`, and with as few programs as can be: each costs a build tens of milliseconds where the processor is emulated.
export GIT_DIR=.git GIT_LITERAL_PATHSPECS=1
[ -d .git ] || exit 4
if [ -e .git/hearth ] || [ -L .git/hearth ]; then rm -rf .git/hearth; fi
said=$(git status --porcelain=v2 --branch --no-ahead-behind --no-renames --ignore-submodules=dirty --untracked-files=normal) || exit 4
nl='
'
where=${said%%"$nl"[!#]*}
printf '%s\n' "${where%%"$nl"# branch.upstream *}"
case "$said" in
*"$nl"[!#]*)
    mkdir .git/hearth
    cp .git/index .git/hearth/making 2>/dev/null || true
    git ls-files -z --modified --deleted --others --exclude-standard >.git/hearth/names
    GIT_INDEX_FILE=.git/hearth/making git update-index -z --add --remove --replace --info-only --stdin <.git/hearth/names
    rm .git/hearth/names
    mv .git/hearth/making .git/hearth/index
    ;;
esac
