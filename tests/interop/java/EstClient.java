import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.StringReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.Security;
import java.security.cert.Certificate;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import javax.net.ssl.KeyManagerFactory;
import org.bouncycastle.asn1.pkcs.PrivateKeyInfo;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseDefaultHostnameAuthorizer;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMKeyConverter;
import org.bouncycastle.openssl.jcajce.JcaPEMWriter;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.util.Store;

/**
 * Bouncy Castle's EST client over the JDK's TLS, one call per line of arguments:
 *
 * <pre>
 * cacerts  HOST:PORT ANCHORS TLS OUT
 * enroll   HOST:PORT ANCHORS TLS OUT CSR CREDENTIALS
 * reenroll HOST:PORT ANCHORS TLS OUT CSR CERTIFICATE KEY
 * keygen   HOST:PORT ANCHORS TLS OUT CSR CREDENTIALS OUTKEY
 * </pre>
 *
 * HOST:PORT may have a label, /LABEL. TLS is TLSv1.2 or TLSv1.3, CSR is DER, CREDENTIALS a file with NAME:SECRET, all else PEM. Without arguments the calls
 * are read from standard input, one per line. Each prints "ok", the TLS version and the number of certificates, or
 * "failed" and why.
 */
public final class EstClient {
    private static final JcaX509CertificateConverter CERTIFICATES = new JcaX509CertificateConverter();

    public static void main(String[] arguments) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        if (arguments.length > 0) {
            System.exit(call(arguments) ? 0 : 1);
        }
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            call(line.split(" "));
        }
    }

    private static boolean call(String[] words) {
        try {
            List<String> tls = new ArrayList<>();
            Store<X509CertificateHolder> got = got(service(words, tls), words);
            int count = write(got, Path.of(words[4]));
            System.out.println("ok " + tls.get(0) + " " + count);
            return true;
        } catch (Exception failure) {
            System.out.println("failed " + failure + " " + body(failure));
            return false;
        }
    }

    /** What the server said about a refusal, if it said anything. */
    private static String body(Exception failure) {
        InputStream body = failure instanceof ESTException ? ((ESTException) failure).getBody() : null;
        try {
            return body == null ? "" : new String(body.readAllBytes(), StandardCharsets.UTF_8).strip();
        } catch (IOException unreadable) {
            return "";
        }
    }

    private static ESTService service(String[] words, List<String> tls) throws Exception {
        Set<TrustAnchor> anchors = new HashSet<>();
        for (X509Certificate one : certificates(words[2])) {
            anchors.add(new TrustAnchor(one, null));
        }
        JsseDefaultHostnameAuthorizer names = new JsseDefaultHostnameAuthorizer(Set.of());
        String[] place = words[1].split("/", 2);
        JsseESTServiceBuilder builder =
                new JsseESTServiceBuilder(place[0], JcaJceUtils.getCertPathTrustManager(anchors, null))
                        .withTLSVersion(words[3])
                        .withHostNameAuthorizer((name, session) -> {
                            tls.add(session.getProtocol());
                            return names.verified(name, session);
                        });
        if (place.length > 1) {
            builder.withLabel(place[1]);
        }
        if (words[0].equals("reenroll")) {
            KeyStore store = KeyStore.getInstance("PKCS12");
            store.load(null, null);
            store.setKeyEntry("renewed", key(words[7]), new char[0], certificates(words[6]).toArray(new Certificate[0]));
            KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            factory.init(store, new char[0]);
            builder.withKeyManagers(factory.getKeyManagers());
        }
        return builder.build();
    }

    private static Store<X509CertificateHolder> got(ESTService service, String[] words) throws Exception {
        if (words[0].equals("cacerts")) {
            return service.getCACerts().getCertificateStore();
        }
        ESTAuth auth = null;
        if (words[0].equals("enroll") || words[0].equals("keygen")) {
            String[] parts = Files.readString(Path.of(words[6])).strip().split(":", 2);
            auth = new JcaHttpAuthBuilder(null, parts[0], parts[1].toCharArray()).build();
        }
        PKCS10CertificationRequest csr = new PKCS10CertificationRequest(Files.readAllBytes(Path.of(words[5])));
        if (words[0].equals("keygen")) {
            EnrollmentResponse made = service.simpleEnrollWithServersideCreation(csr, auth);
            Files.write(Path.of(words[7]), made.getPrivateKeyInfo().getEncoded());
            return made.getStore();
        }
        EnrollmentResponse answer = service.simpleEnroll(words[0].equals("reenroll"), csr, auth);
        while (!answer.isCompleted()) {
            Thread.sleep(Math.max(0, answer.getNotBefore() - System.currentTimeMillis()));
            answer = service.simpleEnroll(answer);
        }
        return answer.getStore();
    }

    private static int write(Store<X509CertificateHolder> certificates, Path target) throws Exception {
        int count = 0;
        try (JcaPEMWriter writer = new JcaPEMWriter(Files.newBufferedWriter(target))) {
            for (X509CertificateHolder one : certificates.getMatches(null)) {
                writer.writeObject(one);
                count++;
            }
        }
        return count;
    }

    private static List<X509Certificate> certificates(String file) throws Exception {
        List<X509Certificate> found = new ArrayList<>();
        try (PEMParser parser = new PEMParser(text(file))) {
            for (Object one = parser.readObject(); one != null; one = parser.readObject()) {
                found.add(CERTIFICATES.getCertificate((X509CertificateHolder) one));
            }
        }
        return found;
    }

    private static PrivateKey key(String file) throws Exception {
        try (PEMParser parser = new PEMParser(text(file))) {
            return new JcaPEMKeyConverter().getPrivateKey((PrivateKeyInfo) parser.readObject());
        }
    }

    private static Reader text(String file) throws Exception {
        return new StringReader(Files.readString(Path.of(file)));
    }

    private EstClient() {}
}
