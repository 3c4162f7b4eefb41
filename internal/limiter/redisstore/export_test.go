// SPDX-License-Identifier: Apache-2.0

package redisstore

import "github.com/redis/go-redis/v9"

// NewOf gives a store that runs another script.
func NewOf(client redis.Scripter, source string) *Store {
	return &Store{client: client, script: redis.NewScript(source)}
}
