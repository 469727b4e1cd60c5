#!/bin/sh
# Installs waybill from this checkout on a Debian machine; run again after `git pull`, it brings all up to date.
#
#   packaging/install.sh                   the command and the agent; enrol the machine, then start the agent
#   packaging/install.sh server ADDRESS    the server too, started; ADDRESS is how hosts, forges and people reach it
#
# Everything lies in /opt/waybill, with the dependencies that requirements/ pins by their hashes.
set -eu

fail() { echo "install.sh: $1" >&2; exit 2; }

home=$(cd "$(dirname "$0")/.." && pwd)
role=${1:-agent} address=${2:-}
locked=host packages="python3-venv git nftables"
case $role in
  agent) [ $# -le 1 ] || fail "the agent needs no address here: its enrolment token names the server." ;;
  server)
    [ -n "$address" ] || fail "say how the server is reached: $0 server ADDRESS"
    locked=run packages="$packages openssh-client" ;;
  *) fail "'$role' is neither agent nor server." ;;
esac
[ "$(id -u)" = 0 ] || fail "run it as root: it writes to /opt, /usr/bin and /etc."

absent=
for package in $packages; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || absent="$absent $package"
done
if [ -n "$absent" ]; then
  echo "Installing$absent"
  # shellcheck disable=SC2086 - a list of words
  apt-get install -y -qq --no-install-recommends $absent >/dev/null ||
    fail "apt-get could not install$absent; is its list old? apt-get update"
fi

echo "Installing waybill into /opt/waybill"
python3 -m venv /opt/waybill
/opt/waybill/bin/pip install -q --disable-pip-version-check --no-input --require-hashes -r "$home/requirements/$locked.txt" ||
  fail "pip could not fetch the packages: does this machine reach the package index? An index of your own: pip.conf"
site=$(/opt/waybill/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$site/waybill"
cp -R "$home/src/waybill" "$site/waybill"
/opt/waybill/bin/python -m compileall -q "$site/waybill"
printf '#!/opt/waybill/bin/python -I\nfrom waybill.cli.main import main\n\nmain()\n' >/opt/waybill/bin/waybill
chmod 755 /opt/waybill/bin/waybill
ln -sf /opt/waybill/bin/waybill /usr/bin/waybill

install -m 644 "$home"/packaging/systemd/waybill-agent*.service /etc/systemd/system/
[ "$role" = agent ] || install -m 644 "$home/packaging/systemd/waybill.service" /etc/systemd/system/
systemctl daemon-reload
systemctl try-restart waybill-agent # an upgrade; no service notices

if [ "$role" = agent ]; then
  echo "$(waybill --version) is installed."
  [ -e /var/lib/waybill-agent/agent.toml ] || echo "Next: waybill agent enroll, with the token that waybill enroll prints on the server."
  exit
fi

id waybill >/dev/null 2>&1 || useradd --system --home-dir /var/lib/waybill --shell /usr/sbin/nologin waybill
install -d -m 700 -o waybill -g waybill /var/lib/waybill
settings=/var/lib/waybill/server.toml
if [ ! -e $settings ]; then
  install -m 600 -o waybill -g waybill /dev/null $settings # a database's address may hold its password
  cat >$settings <<END
# Every setting is also an option of waybill serve, which says what it means: waybill serve --help
listen = "0.0.0.0"
agents_listen = "0.0.0.0"
public_url = "http://$address:8470"
agents_url = "https://$address:8471"
END
fi
systemctl enable -q waybill
systemctl restart waybill
ready='import urllib.request as web; web.build_opener(web.ProxyHandler({})).open("http://127.0.0.1:8470/readyz", timeout=2)'
tries=0
until python3 -c "$ready" 2>/dev/null; do
  tries=$((tries + 1))
  [ $tries -lt 60 ] || fail "the server does not answer; see: journalctl -u waybill"
  sleep 0.5
done
echo "$(waybill --version) serves at http://$address:8470, hosts connect to port 8471; $settings says so."
token=/var/lib/waybill/first-admin-token
[ ! -e $token ] || echo "Next: waybill login http://127.0.0.1:8470 < $token && rm $token"
