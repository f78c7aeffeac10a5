package bfd

import "sync"

// backlog is how many events wait for a slow listener before those of one peer become one.
const backlog = 1024

// teller calls a function for events, one after the other, without making anybody wait who adds one.
type teller struct {
	mu     sync.Mutex
	queue  []Event
	more   chan struct{} // holds a value when the queue may not be empty
	ending chan struct{}
	ended  chan struct{}
}

func newTeller(told func(Event)) *teller {
	t := &teller{more: make(chan struct{}, 1), ending: make(chan struct{}), ended: make(chan struct{})}
	go t.run(told)
	return t
}

// add files an event. With a full backlog it takes the place of the peer's last one: the end of the story is
// never lost, and there is at most one more event than the backlog for each peer.
func (t *teller) add(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) >= backlog {
		for i := len(t.queue) - 1; i >= 0; i-- {
			if t.queue[i].Peer == e.Peer {
				t.queue[i] = e
				return
			}
		}
	}
	t.queue = append(t.queue, e)
	select {
	case t.more <- struct{}{}:
	default:
	}
}

func (t *teller) run(told func(Event)) {
	defer close(t.ended)
	for {
		select {
		case <-t.ending:
			return
		case <-t.more:
		}
		for e, ok := t.take(); ok; e, ok = t.take() {
			told(e)
		}
	}
}

func (t *teller) take() (Event, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.ending:
		return Event{}, false
	default:
	}
	if len(t.queue) == 0 {
		return Event{}, false
	}
	e := t.queue[0]
	t.queue = t.queue[1:]
	return e, true
}

// close drops what was not told yet, and waits for the call under way.
func (t *teller) close() {
	close(t.ending)
	<-t.ended
}
