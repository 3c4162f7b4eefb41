// SPDX-License-Identifier: Apache-2.0

// Package servingcert keeps the certificate that the webhooks are served with, and has the API server trust it.
//
// Unless somebody else does ([Files]), the certificate is in a Secret of the manager's namespace. Every replica serves it, whoever leads, and any of
// them renews it: the API server's optimistic locking makes one of them the first.
package servingcert

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Options are what a [Keeper] may be told. The zero value is what a manager wants.
type Options struct {
	// Lifetime of a certificate. It is renewed after two thirds. Zero is 90 days.
	Lifetime time.Duration
	// Overlap is how long two authorities are trusted before the certificate is switched, and after. It has to be
	// longer than Interval. Zero is 2 minutes.
	Overlap time.Duration
	// Interval is how often the Secret and the configurations are looked at. Zero is 10 seconds.
	Interval time.Duration
}

// Keeper keeps the certificate. It is safe for concurrent use.
type Keeper struct {
	client client.Client
	secret types.NamespacedName
	names  []string
	// configurations are those of webhooks that have to trust the certificate.
	configurations []client.Object
	pace           pace
	interval       time.Duration
	log            logr.Logger

	mu sync.RWMutex
	// kept is what this replica goes by, and told the caBundle that the configurations are known to have.
	kept rotation
	told []byte
}

// New gives a keeper of a certificate for servers of these names, in this Secret, that these configurations of
// webhooks are to trust; of them only kind and name matter, and one that isn't there needs no trust. The client
// must not have a cache: it would fetch every Secret of the cluster.
func New(c client.Client, secret types.NamespacedName, names []string, configurations []client.Object, o Options, log logr.Logger) *Keeper {
	return &Keeper{
		client: c, secret: secret, names: names, configurations: configurations, log: log,
		pace:     pace{lifetime: cmp.Or(o.Lifetime, 90*24*time.Hour), overlap: cmp.Or(o.Overlap, 2*time.Minute)},
		interval: cmp.Or(o.Interval, 10*time.Second),
	}
}

// NeedLeaderElection says that every replica keeps the certificate.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Start keeps the certificate until ctx is done.
func (k *Keeper) Start(ctx context.Context) error {
	tick := time.NewTicker(k.interval)
	defer tick.Stop()
	for {
		err := k.keep(ctx, time.Now())
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			err = k.keep(ctx, time.Now()) // Another replica was first.
		}
		if err != nil && ctx.Err() == nil {
			k.log.Error(err, "the certificate of the webhooks is not kept")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// GetCertificate is for [tls.Config]: what is to be served at present.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.kept.current == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return k.kept.current, nil
}

// Ready gives a check that whoever trusts what the configurations say can talk to the server at this address.
func (k *Keeper) Ready(address string) func(*http.Request) error {
	return func(req *http.Request) error {
		k.mu.RLock()
		cas, err := decodeCAs(k.told)
		k.mu.RUnlock()
		if err != nil {
			return err
		}
		return shakeHands(req.Context(), address, k.names[0], cas)
	}
}

// shakeHands fails unless the server at an address can prove its name to whoever trusts these authorities.
func shakeHands(ctx context.Context, address, name string, cas []*x509.Certificate) error {
	// Whoever asks gives up by itself.
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool(cas), ServerName: name, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("talking to the webhooks: %w", err)
	}
	return conn.Close()
}

// keep takes the step that is due, serves what is to be served, and tells the API server whom to trust.
func (k *Keeper) keep(ctx context.Context, now time.Time) error {
	stored, err := k.load(ctx)
	if err != nil {
		return err
	}
	after, step, err := k.due(decode(stored.Data), now)
	if err != nil {
		return fmt.Errorf("renewing the certificate: %w", err)
	}
	if step != "" {
		if err := k.store(ctx, stored, after); err != nil {
			return err
		}
		k.log.Info("renewing the certificate of the webhooks", "step", step, "notAfter", after.current.Leaf.NotAfter)
	}
	k.mu.Lock()
	k.kept = after
	k.mu.Unlock()
	return k.tell(ctx, encodeCAs(after.cas))
}

// due gives the rotation after the step that is due. A Secret that was lost gets back what is served.
func (k *Keeper) due(stored rotation, now time.Time) (rotation, string, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if !stored.serves(k.names, now) && k.kept.serves(k.names, now) {
		return k.kept, "restored", nil
	}
	return stored.step(now, k.names, k.pace, bytes.Equal(k.told, encodeCAs(stored.cas)))
}

func (k *Keeper) load(ctx context.Context) (*corev1.Secret, error) {
	s := &corev1.Secret{}
	err := k.client.Get(ctx, k.secret, s)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading Secret %s: %w", k.secret, err)
	}
	return s, nil
}

// store stores a rotation in the Secret that was loaded, unless another replica has since.
func (k *Keeper) store(ctx context.Context, loaded *corev1.Secret, r rotation) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	s := loaded.DeepCopy()
	s.Data = data
	write := func() error { return k.client.Update(ctx, s) }
	if loaded.ResourceVersion == "" {
		s.ObjectMeta = metav1.ObjectMeta{Namespace: k.secret.Namespace, Name: k.secret.Name}
		s.Type = corev1.SecretTypeTLS
		write = func() error { return k.client.Create(ctx, s) }
	}
	if err := write(); err != nil {
		return fmt.Errorf("writing Secret %s: %w", k.secret, err)
	}
	return nil
}
