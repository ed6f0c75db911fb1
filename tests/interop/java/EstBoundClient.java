import java.io.FileReader;
import java.io.Reader;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.Security;
import java.security.cert.TrustAnchor;
import java.util.Set;
import javax.security.auth.x500.X500Principal;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.ChannelBindingProvider;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseDefaultHostnameAuthorizer;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jsse.BCSSLSocket;
import org.bouncycastle.jsse.provider.BouncyCastleJsseProvider;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMWriter;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

/**
 * Bouncy Castle's EST client over its own TLS 1.2, with a request that is bound to the connection by tls-unique:
 *
 * <pre>
 * HOST:PORT ANCHOR CREDENTIALS OUT
 * </pre>
 *
 * ANCHOR is one PEM certificate, CREDENTIALS a file with NAME:SECRET; the certificate goes to OUT as PEM.
 */
public final class EstBoundClient {
    public static void main(String[] words) throws Exception {
        Security.addProvider(new BouncyCastleProvider());
        Security.addProvider(new BouncyCastleJsseProvider());
        String[] credentials = Files.readString(Path.of(words[2])).strip().split(":", 2);
        ESTAuth auth = new JcaHttpAuthBuilder(null, credentials[0], credentials[1].toCharArray()).build();
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC", "BC");
        generator.initialize(256);
        KeyPair pair = generator.generateKeyPair();
        EnrollmentResponse answer = service(words).simpleEnrollPoP(
                false,
                new JcaPKCS10CertificationRequestBuilder(new X500Principal("CN=bound"), pair.getPublic()),
                new JcaContentSignerBuilder("SHA256withECDSA").setProvider("BC").build(pair.getPrivate()),
                auth);
        try (JcaPEMWriter writer = new JcaPEMWriter(Files.newBufferedWriter(Path.of(words[3])))) {
            for (X509CertificateHolder one : answer.getStore().getMatches(null)) {
                writer.writeObject(one);
            }
        }
    }

    private static ESTService service(String[] words) throws Exception {
        TrustAnchor anchor;
        try (Reader file = new FileReader(words[1]); PEMParser parser = new PEMParser(file)) {
            X509CertificateHolder holder = (X509CertificateHolder) parser.readObject();
            anchor = new TrustAnchor(new JcaX509CertificateConverter().getCertificate(holder), null);
        }
        return new JsseESTServiceBuilder(words[0], JcaJceUtils.getCertPathTrustManager(Set.of(anchor), null))
                .withProvider("BCJSSE")
                .withTLSVersion("TLSv1.2")
                .withHostNameAuthorizer(new JsseDefaultHostnameAuthorizer(Set.of()))
                .withChannelBindingProvider(new ChannelBindingProvider() {
                    @Override
                    public boolean canAccessChannelBinding(Socket socket) {
                        return socket instanceof BCSSLSocket;
                    }

                    @Override
                    public byte[] getChannelBinding(Socket socket, String kind) {
                        return ((BCSSLSocket) socket).getConnection().getChannelBinding(kind);
                    }
                })
                .build();
    }

    private EstBoundClient() {}
}
