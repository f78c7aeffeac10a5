package kube

// Forget forgets the history up to now.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten, s.changes = s.revision, nil
}

// PoolName is of the pool that holds all blocks, for the contract suite.
func (s *Store) PoolName() string { return "a" }
