// SPDX-License-Identifier: Apache-2.0

package redisusers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// interval is how often the Secret is looked at: whoever deletes it has new passwords made.
const interval = 5 * time.Second

// errNone says that the Secret has not been read yet.
var errNone = errors.New("the users of Redis are not known yet")

// Keeper makes the Secret with the users' passwords where there is none, and knows what it holds. The Secret is
// never changed, so that all replicas, and Redis, agree on it. It is safe for concurrent use.
type Keeper struct {
	// client is nil before there is a manager.
	client client.Client
	secret types.NamespacedName
	log    logr.Logger
	kept   atomic.Pointer[users]
}

// New gives a keeper of this Secret, which knows nobody before a manager runs it.
func New(secret types.NamespacedName, log logr.Logger) *Keeper {
	return &Keeper{secret: secret, log: log}
}

// SetupWithManager has the manager run the keeper.
func (k *Keeper) SetupWithManager(mgr ctrl.Manager) error {
	// The manager's own client would fetch every Secret of the cluster.
	c, err := client.New(mgr.GetConfig(), client.Options{})
	if err != nil {
		return fmt.Errorf("making a client for the users of Redis: %w", err)
	}
	k.client = c
	if err := mgr.Add(k); err != nil {
		return fmt.Errorf("adding the keeper of the users of Redis: %w", err)
	}
	return nil
}

// NeedLeaderElection says that every replica has to know the passwords.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Start keeps the Secret until ctx is done.
func (k *Keeper) Start(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := k.keep(ctx); err != nil && ctx.Err() == nil {
			k.log.Error(err, "the users of Redis are not kept")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// LogIn gives the manager's user and password. It fails before the first of them are known.
func (k *Keeper) LogIn(context.Context) (username, password string, err error) {
	u := k.kept.Load()
	if u == nil {
		return "", "", errNone
	}
	return Manager, (*u)[Manager], nil
}

// Sidecars gives the user and password of the sidecars as the files that they log in with. It fails before the first
// of them are known.
func (k *Keeper) Sidecars() (map[string][]byte, error) {
	u := k.kept.Load()
	if u == nil {
		return nil, errNone
	}
	return map[string][]byte{"username": []byte(Sidecar), "password": []byte((*u)[Sidecar])}, nil
}

func (k *Keeper) keep(ctx context.Context) error {
	data, err := k.ensure(ctx)
	if apierrors.IsAlreadyExists(err) {
		data, err = k.ensure(ctx) // Another replica was first.
	}
	if err != nil {
		return err
	}
	u, err := decode(data)
	if err != nil {
		return fmt.Errorf("reading Secret %s: %w", k.secret, err)
	}
	k.kept.Store(&u)
	return nil
}

// ensure gives what the Secret holds, and makes it where it isn't there.
func (k *Keeper) ensure(ctx context.Context) (map[string][]byte, error) {
	s := &corev1.Secret{}
	err := k.client.Get(ctx, k.secret, s)
	if err == nil {
		return s.Data, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("reading Secret %s: %w", k.secret, err)
	}
	s = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.secret.Namespace, Name: k.secret.Name},
		Type:       corev1.SecretTypeOpaque,
		Immutable:  new(true),
		Data:       generate().encode(),
	}
	if err := k.client.Create(ctx, s); err != nil {
		return nil, fmt.Errorf("creating Secret %s: %w", k.secret, err)
	}
	k.log.Info("made new users of Redis", "secret", k.secret)
	return s.Data, nil
}
