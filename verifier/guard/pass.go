package guard

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// pass hands a request on that shows something, or ends a container of the guard.
func (g *Guard) pass(c *call) error {
	if err := g.own(c); err != nil {
		return err
	}
	answer, err := g.opt.Engine.Forward(c.r.Context(), c.r.Method, c.uri(), nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	for _, h := range []string{"Content-Type", "Ostype", "Docker-Experimental", "Server", "Builder-Version", "Swarm"} {
		if v := answer.Header.Get(h); v != "" {
			c.w.Header().Set(h, v)
		}
	}
	if answer.Header.Get("Api-Version") != "" {
		// Clients take the newest that they are offered.
		c.w.Header().Set("Api-Version", fmt.Sprintf("1.%d", c.newest))
	}
	if answer.ContentLength >= 0 {
		c.w.Header().Set("Content-Length", strconv.FormatInt(answer.ContentLength, 10))
	}
	c.w.WriteHeader(answer.StatusCode)
	copyOut(c.w, answer.Body)
	return nil
}

// own makes the name in a path the full ID of a container or image that the guard
// knows: the engine is never asked by a name that could move. What the verifier runs for
// itself callers may look at only: who may run tasks may not end attestd.
func (g *Guard) own(c *call) error {
	switch c.kind {
	case "container":
		id, err := g.opt.Engine.Resolve(c.r.Context(), c.name)
		if err != nil {
			return err
		}
		made, ok := g.state.container(id)
		if !ok {
			return refuse(ReasonContainer, "%s", id)
		}
		if made.Own && c.moves {
			return notYours(made.Purpose)
		}
		c.name = id
	case "image":
		i, err := g.opt.Engine.Image(c.r.Context(), c.name)
		if err != nil {
			return err
		}
		if _, ok := g.state.image(i.ID); !ok {
			return refuse(ReasonImage, "%s", i.ID)
		}
		c.name = i.ID
	}
	return nil
}

// copyOut hands on what comes as it comes: logs and waiting have no end of their own.
func copyOut(w http.ResponseWriter, from io.Reader) {
	flush := http.NewResponseController(w)
	flush.Flush() // the header: who waits for a container wants to know that the waiting has begun
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			flush.Flush()
		}
		if err != nil {
			return
		}
	}
}

// attach shows a container's output. It is the one connection that leaves HTTP, and
// only in one direction: what the caller sends is thrown away, here.
func (g *Guard) attach(c *call) error {
	if err := g.own(c); err != nil {
		return err
	}
	from, kind, err := g.opt.Engine.Attach(c.r.Context(), c.uri())
	if err != nil {
		return err
	}
	defer from.Close()
	out, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		return err
	}
	defer out.Close()
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
	if c.r.Header.Get("Upgrade") != "" {
		if kind == "" {
			kind = "application/vnd.docker.raw-stream"
		}
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + kind + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	if _, err := io.WriteString(out, head); err != nil {
		return nil
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		io.Copy(io.Discard, out)
		hungUp(out, ended)
		from.Close()
	}()
	io.Copy(out, from)
	return nil
}

// hungUp waits until the caller has closed the whole connection, or ended. Clients
// that send nothing close their half of it at once, and go on reading.
func hungUp(c net.Conn, ended <-chan struct{}) {
	for {
		if !open(c) {
			return
		}
		select {
		case <-ended:
			return
		case <-time.After(time.Second):
		}
	}
}
