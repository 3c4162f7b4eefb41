// SPDX-License-Identifier: Apache-2.0

// Package redis keeps the snapshots of the config store in Redis.
//
// A namespace has one hash, with the snapshot as JSON and its revision beside it, and one channel of the
// same name, on which a new revision is announced. All keys of an installation share a hash tag, so that
// fencing and compare-and-set are one atomic script on a cluster too.
package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/weir-dev/weir/internal/configstore"
)

// Fields of a namespace's hash.
const (
	fieldEpoch  = "epoch"
	fieldNumber = "number"
	fieldBody   = "body"
)

// snapshotKey is the key of a namespace's snapshot, and the name of its channel.
func snapshotKey(instance, namespace string) string {
	return "weir:" + instance + ":{config}:" + namespace
}

// epochKey is the key of the last claimed epoch. The slash keeps it apart from every namespace, one that
// is named epoch too.
func epochKey(instance string) string { return "weir:" + instance + ":{config}/epoch" }

// errAbsent says that nothing is stored for a namespace. That is never the same as no policies.
var errAbsent = errors.New("no snapshot is stored")

// revision reads the fields epoch and number, as HMGET gives them.
func revision(fields []any) (configstore.Revision, error) {
	if fields[0] == nil && fields[1] == nil {
		return configstore.Revision{}, errAbsent
	}
	epoch, err := integer(fields[0])
	if err != nil {
		return configstore.Revision{}, fmt.Errorf("reading the stored epoch: %w", err)
	}
	number, err := integer(fields[1])
	if err != nil {
		return configstore.Revision{}, fmt.Errorf("reading the stored number: %w", err)
	}
	return configstore.Revision{Epoch: epoch, Number: number}, nil
}

func integer(field any) (int64, error) {
	text, _ := field.(string)
	return strconv.ParseInt(text, 10, 64)
}

// snapshot reads the fields epoch, number and body of a namespace, as HMGET gives them. It believes a
// body only if it says of itself what the fields and the key say. Fields that it doesn't know are of a
// newer manager, and don't matter.
func snapshot(namespace string, fields []any) (configstore.Snapshot, error) {
	stored, err := revision(fields)
	if err != nil {
		return configstore.Snapshot{}, err
	}
	body, _ := fields[2].(string)
	var s configstore.Snapshot
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		return configstore.Snapshot{}, fmt.Errorf("decoding snapshot %s: %w", stored, err)
	}
	if s.Namespace != namespace {
		return configstore.Snapshot{}, fmt.Errorf("snapshot %s is of namespace %q", stored, s.Namespace)
	}
	if s.Revision != stored {
		return configstore.Snapshot{}, fmt.Errorf("snapshot %s calls itself %s", stored, s.Revision)
	}
	return s, nil
}
