# shellcheck shell=bash
# Where the name of a project is written.
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# The files that name the project.
shopt -s nullglob
# shellcheck disable=SC2034 # used by siblings and rename
named=(.env.example Cargo.toml deploy/kubernetes/overlays/*/kustomization.yaml)
shopt -u nullglob

# Prints name $1 as a DNS label, of at most 63 characters (RFC 1123), with room for the rest of a container's name.
label_of() {
  local name=${1//_/-}
  echo "${name:0:40}"
}

# Prints the script for `sed -E` that writes name $2 and label $3 into file $1.
naming() {
  case $1 in
    Cargo.toml) printf '1,/^name = / s/^name = .*/name = "%s"/' "$2" ;;
    .env.example) printf 's/^APP_IMAGE=.*/APP_IMAGE=%s/; s/^APP_NAME=.*/APP_NAME=%s/' "$2" "$3" ;;
    *) printf 's/(namespace:? )[a-z0-9-]+-(production|staging)/\\1%s-\\2/' "$3" ;;
  esac
}
