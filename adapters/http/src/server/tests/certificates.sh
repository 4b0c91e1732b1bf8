# Makes ca.crt, and one and two, which it has signed for localhost.
set -e
key() { openssl ecparam -name prime256v1 -genkey -noout -out $1.key; }
key ca
openssl req -new -x509 -key ca.key -subj /CN=ca -days 100 -out ca.crt
printf 'subjectAltName=DNS:localhost\n' >server.ext
for name in one two; do
    key $name
    openssl req -new -key $name.key -subj /CN=$name -out $name.csr
    openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 10 \
        -extfile server.ext -out $name.crt
done
