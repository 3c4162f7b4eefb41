// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"github.com/go-logr/logr"

	"github.com/weir-dev/weir/internal/redisclient"
)

// blip is how many looks at a store may fail in a row before it counts as away: nobody is to be told of a
// lost packet.
const blip = 3

// outage tells of a store that can't be used, once for each reason that it comes to have, and of its return, once.
type outage struct {
	log logr.Logger
	// tell is given why the store can't be reached, or nil when it can again.
	tell func(error)

	failures int
	// told is the reason that was told last.
	told string
}

// note says how a look at the store went.
func (o *outage) note(err error) {
	if err == nil {
		if o.failures >= blip {
			o.log.Info("the store can be reached again")
			o.tell(nil)
		}
		o.failures, o.told = 0, ""
		return
	}
	o.failures++
	reason := redisclient.Reason(err)
	if o.failures >= blip && reason != o.told {
		o.told = reason
		o.log.Error(err, "the store can't be reached", "reason", reason)
		o.tell(err)
	}
}
