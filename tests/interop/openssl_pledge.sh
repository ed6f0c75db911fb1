#!/bin/sh
# A pledge made of openssl and curl alone (RFC 8995 with CMS vouchers): asks for a voucher, verifies it, enrols.
#
# usage: openssl_pledge.sh REGISTRAR(host:port) IDEVID.pem(chain, leaf first) IDEVID.key.pem MASA_ANCHORS.pem WORK
# Prints one line per step; WORK keeps every artefact. Exit 0: an LDevID lies in WORK/ldevid.pem.
set -eu

registrar=$1 idevid=$2 key=$3 anchors=$4 work=$5
base="https://$registrar/.well-known"
type=application/voucher-cms+json
mkdir -p "$work"
cd "$work"

fail() { echo "refused: $*" >&2; exit 1; }
one_line() { tr -d '\n'; }
unbase64() { tr -d ' \t\r\n' <"$1" | openssl base64 -d -A; }
certificate() { openssl x509 -in "$1" -outform DER | openssl base64 -A; }
# the value of a leaf that is a string, out of JSON that was verified before
leaf() { sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p" "$2"; }

# -- provisional TLS: what the registrar shows is stored, and every later connection is held to the same key
openssl s_client -connect "$registrar" -cert "$idevid" -cert_chain "$idevid" -key "$key" -showcerts \
  </dev/null >handshake.txt 2>handshake.err || true
awk '/BEGIN CERTIFICATE/ { n++ } /BEGIN CERTIFICATE/,/END CERTIFICATE/ { print > ("tls-" n ".pem") }' handshake.txt
[ -s tls-1.pem ] || fail "the registrar showed no certificate"
pin=$(openssl x509 -in tls-1.pem -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary |
  openssl base64 -A)
: >intermediates.pem
for file in tls-[2-9].pem; do [ -e "$file" ] && cat "$file" >>intermediates.pem; done

ask() { # ask OUTPUT CURL-ARGUMENT...: prints the status
  output=$1
  shift
  curl --silent --show-error --insecure --pinnedpubkey "sha256//$pin" --cert "$idevid" --key "$key" --noproxy '*' \
    --max-time 30 --output "$output" --dump-header headers.txt --write-out '%{http_code}' "$@"
}

# -- the voucher-request
serial=$(openssl x509 -in "$idevid" -noout -subject -nameopt multiline | sed -n 's/^ *serialNumber *= *//p')
nonce=$(openssl rand -base64 16 | one_line)
printf '{"ietf-voucher-request:voucher":{"created-on":"%s","assertion":"proximity","serial-number":"%s","nonce":"%s","proximity-registrar-cert":"%s"}}' \
  "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$serial" "$nonce" "$(certificate tls-1.pem)" >pvr.json
awk '/BEGIN CERTIFICATE/ { n++ } { print > (n == 1 ? "idevid-leaf.pem" : "idevid-issuers.pem") }' "$idevid"
openssl cms -sign -binary -nodetach -md sha256 -econtent_type 1.2.840.113549.1.9.16.1.40 \
  -in pvr.json -signer idevid-leaf.pem -inkey "$key" -certfile idevid-issuers.pem -outform DER -out pvr.cms
echo "asking: serial $serial, nonce $nonce"

# -- the voucher; 202 means to ask the very same again
tries=0
while :; do
  status=$(ask voucher.cms -H "Content-Type: $type" -H "Accept: $type" --data-binary @pvr.cms "$base/brski/requestvoucher")
  [ "$status" = 202 ] || break
  tries=$((tries + 1))
  [ $tries -le 20 ] || fail "nobody decides"
  echo "waiting: 202"
  sleep 1
done
[ "$status" = 200 ] || fail "requestvoucher: $status $(head -c 300 voucher.cms)"
grep -qi "^content-type: $type" headers.txt || fail "the voucher comes as something else"

tell() { # tell true|false [REASON]
  if [ "$1" = true ]; then body='{"version":1,"status":true}'; else body="{\"version\":1,\"status\":false,\"reason\":\"$2\"}"; fi
  ask status.txt -H "Content-Type: application/json" --data-binary "$body" "$base/brski/voucher_status" >status.code
}
reject() { tell false "$*"; fail "$*"; }

# -- signed by the manufacturer, for this device and this request
openssl cms -verify -binary -inform DER -purpose any -in voucher.cms -CAfile "$anchors" -out voucher.json 2>verify.err ||
  reject "voucher-signature-invalid"
grep -q '^{"ietf-voucher:voucher"' voucher.json || reject "voucher-malformed"
[ "$(leaf serial-number voucher.json)" = "$serial" ] || reject "voucher-for-other-device"
[ "$(leaf nonce voucher.json)" = "$nonce" ] || reject "voucher-for-other-request"

# -- the chain that was stored ends in the pinned certificate
leaf pinned-domain-cert voucher.json | openssl base64 -d -A | openssl x509 -inform DER -out pin.pem || reject "pin-missing"
openssl verify -partial_chain -purpose any -trusted pin.pem -untrusted intermediates.pem tls-1.pem >verify.txt 2>&1 ||
  reject "domain-not-pinned"
openssl x509 -in tls-1.pem -noout -ext extendedKeyUsage | grep -Eq 'CMC Registration Authority|1\.3\.6\.1\.5\.5\.7\.3\.28' ||
  reject "domain-not-pinned"
echo "voucher: $(leaf assertion voucher.json), pins $(openssl x509 -in pin.pem -noout -subject)"
tell true
[ "$(cat status.code)" = 200 ] || fail "voucher_status: $(cat status.code)"

# -- EST over the registrar that is trusted now
status=$(ask cacerts.b64 "$base/est/cacerts")
[ "$status" = 200 ] || fail "cacerts: $status"
unbase64 cacerts.b64 | openssl pkcs7 -inform DER -print_certs -out cacerts.pem
status=$(ask csrattrs.b64 "$base/est/csrattrs")
case $status in 200 | 204 | 404) ;; *) fail "csrattrs: $status" ;; esac
# what the registrar asks for: a P-256 key, a CN of our choice, and the name that it has given us
uri=$(unbase64 csrattrs.b64 | LC_ALL=C grep -aoE 'spiffe://[a-z0-9.-]+/proxy/[0-9a-f-]{36}' | head -n 1)
openssl ecparam -name prime256v1 -genkey -noout -out ldevid.key.pem
openssl req -new -key ldevid.key.pem -subj "/serialNumber=$serial/CN=$serial" -addext "subjectAltName=URI:$uri" \
  -outform DER | openssl base64 >ldevid.b64
status=$(ask enrolled.b64 -H "Content-Type: application/pkcs10" --data-binary @ldevid.b64 "$base/est/simpleenroll")
[ "$status" = 200 ] || fail "simpleenroll: $status $(head -c 300 enrolled.b64)"
unbase64 enrolled.b64 | openssl pkcs7 -inform DER -print_certs -out ldevid.pem
openssl verify -purpose any -CAfile cacerts.pem -untrusted cacerts.pem ldevid.pem >verify.txt 2>&1 || fail "$(cat verify.txt)"
echo "enrolled: $(openssl x509 -in ldevid.pem -noout -ext subjectAltName | one_line)"

# -- the good news comes with the LDevID itself
idevid=ldevid.pem key=ldevid.key.pem
status=$(ask status.txt -H "Content-Type: application/json" --data-binary '{"version":1,"status":true}' "$base/brski/enrollstatus")
[ "$status" = 200 ] || fail "enrollstatus: $status"
echo "done"
