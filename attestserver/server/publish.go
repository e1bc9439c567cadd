package server

import (
	"context"
	"time"

	"portcullis/internal/event"
)

// publishEvery is how long an entry of the verdict log may wait for the
// checkpoint that covers it: many entries share the writes of one.
const publishEvery = time.Second

// publish signs the growth of the verdict log. A failure ends the log, and with
// the next entry that cannot be written attestd.
func (s *Server) publish(ctx context.Context) {
	for ctx.Err() == nil {
		s.sleep(ctx, publishEvery)
		if err := s.o.Record.publish(); err != nil {
			s.o.Events.Emit("log.failed", event.Fields{"detail": err.Error()})
			return
		}
	}
}
