// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// rotation is how far the change from one certificate to the next has come. All replicas read it from one Secret,
// and whoever sees first that a step is due takes it.
//
// Nothing that is served is ever signed by an authority that isn't trusted yet, or not any more: first the next
// authority is trusted beside the present one, then its certificate is served, and then the former authority is
// dropped, with a wait before each step that lets every replica and every API server follow.
type rotation struct {
	// cas are trusted.
	cas []*x509.Certificate
	// current is served. It is nil before there is one.
	current *tls.Certificate
	// next will be served. It is nil most of the time.
	next *tls.Certificate
	// since is the time of the last step.
	since time.Time
}

// pace says how long things take.
type pace struct{ lifetime, overlap time.Duration }

// step gives the rotation after the step that is due, and what it is; "" is none. Where told is false, the API
// server isn't known to trust all cas: nothing that depends on it is due.
func (r rotation) step(now time.Time, names []string, p pace, told bool) (rotation, string, error) {
	settled := now.Sub(r.since) >= p.overlap
	switch {
	case !r.serves(names, now):
		c, err := issue(names, now, p.lifetime)
		// Where nothing good was served, there is nothing to wait for.
		return rotation{cas: []*x509.Certificate{c.ca}, current: &c.cert, since: now}, "issued", err
	case r.next != nil && !good(r.next, r.cas, names, now):
		return rotation{cas: authorityOf(r.current, r.cas), current: r.current, since: now}, "gave up the next", nil
	case r.next == nil && len(r.cas) == 1 && old(r.current.Leaf, now):
		c, err := issue(names, now, p.lifetime)
		return rotation{cas: append(slices.Clone(r.cas), c.ca), current: r.current, next: &c.cert, since: now}, "trusted the next", err
	case r.next != nil && settled && told:
		return rotation{cas: r.cas, current: r.next, since: now}, "switched", nil
	case r.next == nil && len(r.cas) > 1 && settled:
		return rotation{cas: authorityOf(r.current, r.cas), current: r.current, since: now}, "dropped the former", nil
	}
	return r, "", nil
}

// serves says whether there is something to serve that is believed.
func (r rotation) serves(names []string, now time.Time) bool {
	return r.current != nil && good(r.current, r.cas, names, now)
}

// old says whether two thirds of a certificate's time are over.
func old(cert *x509.Certificate, now time.Time) bool {
	issued := cert.NotBefore.Add(skew)
	return now.Sub(issued) >= cert.NotAfter.Sub(issued)*2/3
}

// The keys of the Secret. The first three are those that cert-manager would use.
const (
	keyCAs      = "ca.crt"
	keyCert     = corev1.TLSCertKey
	keyKey      = corev1.TLSPrivateKeyKey
	keyNextCert = "next.crt"
	keyNextKey  = "next.key"
	keySince    = "since"
)

// decode reads what a Secret holds. What can't be read is as good as nothing: it is made anew.
func decode(data map[string][]byte) rotation {
	var r rotation
	cas, err := decodeCAs(data[keyCAs])
	if err != nil {
		return r
	}
	r.cas = cas
	r.current = decodeCert(data[keyCert], data[keyKey])
	r.next = decodeCert(data[keyNextCert], data[keyNextKey])
	// Without a time every step is due.
	r.since, _ = time.Parse(time.RFC3339Nano, string(data[keySince]))
	return r
}

// decodeCert gives a certificate, or nil.
func decodeCert(text, key []byte) *tls.Certificate {
	cert, err := tls.X509KeyPair(text, key)
	if err != nil {
		return nil
	}
	return &cert
}

// encode gives what a Secret is to hold.
func (r rotation) encode() (map[string][]byte, error) {
	data := map[string][]byte{keyCAs: encodeCAs(r.cas), keySince: []byte(r.since.UTC().Format(time.RFC3339Nano))}
	var err error
	if data[keyCert], data[keyKey], err = encodeCert(r.current); err != nil {
		return nil, fmt.Errorf("encoding the certificate: %w", err)
	}
	if r.next == nil {
		return data, nil
	}
	if data[keyNextCert], data[keyNextKey], err = encodeCert(r.next); err != nil {
		return nil, fmt.Errorf("encoding the next certificate: %w", err)
	}
	return data, nil
}
