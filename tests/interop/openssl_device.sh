#!/bin/sh
# A device's key and IDevID, made by openssl alone under a manufacturer's CA.
#
# usage: openssl_device.sh SERIAL MASA(host:port) CA.pem(chain, CA first) CA.key.pem FOLDER
# FOLDER gets idevid.key.pem and idevid.pem (chain, leaf first, without the root).
set -eu

serial=$1 masa=$2 ca=$3 ca_key=$4 folder=$5
umask 077
mkdir -p "$folder"
cd "$folder"
openssl ecparam -name prime256v1 -genkey -noout -out idevid.key.pem
openssl req -new -key idevid.key.pem -subj "/O=Acme/CN=widget/serialNumber=$serial" -out idevid.csr
cat >idevid.cnf <<CNF
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
1.3.6.1.5.5.7.1.32 = ASN1:IA5STRING:$masa
CNF
openssl x509 -req -in idevid.csr -CA "$ca" -CAkey "$ca_key" -set_serial "0x$(openssl rand -hex 12 | sed 's/^./5/')" \
  -sha256 -days 36500 -extfile idevid.cnf -out leaf.pem 2>x509.err
openssl x509 -in "$ca" -out issuer.pem
cat leaf.pem issuer.pem >idevid.pem
