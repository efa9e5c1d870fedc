# shellcheck shell=bash
# Where the name of a project appears.
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# The files that contain the name of the project.
shopt -s nullglob
# shellcheck disable=SC2034 # used by siblings and rename
named=(.env.example Cargo.toml deploy/kubernetes/overlays/*/kustomization.yaml)
shopt -u nullglob

# Prints name $1 as a DNS label of at most 40 characters. The limit is 63 (RFC 1123); the rest is for suffixes.
label_of() {
  local name=${1//_/-}
  echo "${name:0:40}"
}

# Prints the `sed -E` script that writes name $2 and label $3 to file $1.
naming() {
  case $1 in
    Cargo.toml) printf '1,/^name = / s/^name = .*/name = "%s"/' "$2" ;;
    .env.example) printf 's/^APP_IMAGE=.*/APP_IMAGE=%s/; s/^APP_NAME=.*/APP_NAME=%s/' "$2" "$3" ;;
    *) printf 's/(namespace:? )[a-z0-9-]+-(production|staging)/\\1%s-\\2/' "$3" ;;
  esac
}
